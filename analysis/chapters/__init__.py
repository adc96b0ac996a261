"""The chapters of a report, one module or package each: its tables, its figures and its section.

`analysis.contents` lists them in the order of the page.
"""
