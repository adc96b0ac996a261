"""The chapters of a report, one module or package each: tables, figures and, last, the section.

`analysis.contents` lists them in the order of the page. What chapters share, and what a terminal
shows, stands in the folder above.
"""
