"""phrasebox: captioned images in, phrases with boxes and masks out.

Everything a person or a cluster touches is in `pipeline`; everything that touches data is in
`stages`.
"""

__version__ = "0.1.0"
