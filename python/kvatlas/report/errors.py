"""What the report raises."""


class StoreError(OSError):
    """The store cannot be drawn, or its report not be written; the message is one sentence."""
