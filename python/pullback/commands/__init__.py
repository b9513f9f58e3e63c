"""The subcommands of `pullback` that have a module of their own: `add` puts one into the parser, `run` does it."""
