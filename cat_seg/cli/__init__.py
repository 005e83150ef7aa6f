"""The command line: `cat-seg` and its subcommands, one a module."""
