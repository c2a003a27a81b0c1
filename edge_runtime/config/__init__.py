"""The device file: TOML -> frozen, typed values, with every mistake named at its place."""
