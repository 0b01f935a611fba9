"""Annotated pages: read strictly, divided into training and test, and made into batches."""
