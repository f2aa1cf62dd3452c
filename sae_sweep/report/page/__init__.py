"""`report.html`: everything a sweep found as one page, which opens without a network or a server."""
