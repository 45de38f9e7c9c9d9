"""The pages of `rpt browse`: an index of the scores, queries to it, and the web server."""
