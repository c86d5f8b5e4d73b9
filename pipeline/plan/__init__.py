"""What a run over many images will take: `phrasebox plan`.

sample.py    takes a sample of the input through every step, on all cores at once, and writes down what it takes
trial.py     runs over the first images, for what starting and ending take
forecast.py  arithmetic: time, memory, disk and price of any number of images on any machine
"""
