"""The command line. One file per group of commands; `app` puts them together."""
