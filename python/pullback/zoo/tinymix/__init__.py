"""tiny-mix: a trained four-layer model of about 300 words whose answers are known.

Five tasks: greater-than years, indirect objects, induction, brackets, and two-hop facts ("the capital of the state
containing dallas is" -> austin) where layer 0's MLP at the city token is trained to carry the state.
"""

from pullback.zoo.tinymix.files import DATA, load, load_figures, load_lean, load_transcoder_figures
from pullback.zoo.tinymix.transcoders import load_transcoders

__all__ = ["DATA", "load", "load_figures", "load_lean", "load_transcoder_figures", "load_transcoders"]
