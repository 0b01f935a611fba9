"""The page at `/`: its static files, and the text of documents as it shows it."""
