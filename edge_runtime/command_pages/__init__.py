"""Man pages and shell completions, made of the parsers of the commands; the Debian package carries them.

`python -m edge_runtime.command_pages.write FOLDER` writes them for a machine where the runtime came by pip.
"""
