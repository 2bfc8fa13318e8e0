"""The report of a comparison: HTML page, Markdown, console and files."""
