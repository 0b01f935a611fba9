"""Pictures into pixels: opened with limits, turned upright, cut into views."""
