"""Documents that are read as jobs: handed in, queued, read page by page, kept."""
