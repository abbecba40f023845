"""Random calls, each made twice: to the scripts by hand, and to the model."""

from machine.clients import ClientCalls
from machine.slots import SlotCalls

__all__ = ["QueueMachine"]


class QueueMachine(ClientCalls, SlotCalls):
    """All calls of a queue, in whatever order."""
