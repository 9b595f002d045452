"""What the report raises."""


class StoreError(Exception):
    """The file is no store that can be drawn; the message is one sentence."""
