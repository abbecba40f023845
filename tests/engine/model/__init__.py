"""The queue as a specification: what each script answers and leaves behind, in plain Python. No I/O.

Written from the rules of the engine and the headers of the scripts, slow and simple. Where the
scripts count, the model looks: a counter is what the graph and the finished tasks say, so there is
nothing here that could be patched wrongly. It knows no resources, no text of a
policy, values inside the call, and one history of the server; the simulator goes further.
"""

from model.job import Job
from model.queue import Queue
from model.ready import Answer, Call

__all__ = ["Answer", "Call", "Job", "Queue"]
