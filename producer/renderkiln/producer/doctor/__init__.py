"""`renderkiln doctor`: looks over this machine, and says what is wrong and what to type. Starts and changes nothing.

Each module reads facts and, in functions of their own that touch nothing, judges them. What only a worker can know is
looked at by the worker, which joins in through the entry-point group `renderkiln.checkups`.
"""
