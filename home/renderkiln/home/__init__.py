"""What both who asks and who renders need on a machine.

Settings, data folder, embedded server, ledger, pictures and stores.
"""
