"""JUICE: people compare two models' videos pair by pair, and say why.

`study` holds the questions and which side shows which model, `pairs` finds and post-processes the
clips, `page` writes the page that raters open, `answers` reads what they send back, `scoring` and
`report` say what it means.

Source: JUICE, Emu Video, arXiv:2311.10709, "Human evaluations" and the appendix.
"""
