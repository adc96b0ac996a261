"""The chapters of a report, one module or package each: tables, figures and, last, the section.

`analysis.contents` lists them in the order of the page. What chapters share stands above them, and
so does what a terminal shows.
"""
