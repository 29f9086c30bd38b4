"""Hand-made faults in the numeric core, each with the test that must catch it.

None of these tests needs the images of a real data set.
"""

from helpers.mutants.fault import Fault
from helpers.mutants.model import MODEL
from helpers.mutants.protocol import PROTOCOL
from helpers.mutants.training import TRAINING

FAULTS = [*MODEL, *TRAINING, *PROTOCOL]

__all__ = ["FAULTS", "Fault"]
