"""The generic calibration: small CLIPs that are unlike each other, what is fitted to all of them, and how it transfers.

`make calibration` trains the models on captioned photographs, makes datasets of them, writes
`stages/model/weights/generic/calibration.json`, and measures it on models that the fit has not seen. The models stay
in `out/calibration`: they are no part of the repository.
"""
