"""How fast the suite is: beside the released way, a competent loop, and the machine's ceiling.

python -m bench.speed
"""
