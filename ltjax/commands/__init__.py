"""The commands of `ltjax NAME`: one module each, with `main(arguments)`; its docstring's first line is the summary."""
