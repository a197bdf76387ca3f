"""What `ltjax NAME` runs: one module a command, with `main(arguments)`; its docstring's first line is the summary."""
