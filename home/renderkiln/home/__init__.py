"""What both who asks and who renders need on a machine: settings, data folder, embedded server, ledger, pictures, stores."""
