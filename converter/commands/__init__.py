"""The commands of `edge-convert`: one module each, with `add_arguments` and `run`."""
