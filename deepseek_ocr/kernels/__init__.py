"""Fast paths beside the plain ones they must equal; which are used is chosen in `choice.py`."""
