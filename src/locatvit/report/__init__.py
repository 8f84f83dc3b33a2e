"""Result files to tables, figures and pages. No torch: a report is made where nothing is trained.

``paper`` holds the figures that the paper reports, ``aggregate`` puts results that differ in the seed alone
together, ``tables`` and ``figures`` show them, ``sections`` and ``html`` write one self-contained page, and
``runs`` makes all of it from run folders.
"""
