"""Judging results: metrics, benchmark protocols, degradations and the runs that make tables of numbers.

Nothing here is needed to enlarge a picture. Importing this package imports neither torch nor numpy;
its modules do (`metrics` needs torch only for the perceptual metrics).
"""
