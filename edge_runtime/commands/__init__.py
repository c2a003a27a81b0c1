"""One module a command; `edge_runtime/cli.py` imports only the one that is used."""
