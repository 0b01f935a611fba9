"""The regions and boxes in a page's text, and where they lie on the page."""
