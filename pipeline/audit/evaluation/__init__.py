"""The report of an evaluation as files: an offline page with its charts, Markdown, pictures, and the terminal."""
