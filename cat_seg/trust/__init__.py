"""The one room where files from strangers are opened, by readers that execute nothing."""
