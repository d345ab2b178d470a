"""The pages that people look at: server-rendered HTML that works without JavaScript.

One page is one file NAME_page.py here with its routes and one template in `templates/`; what it shows is put
together in a file of its own where that is more than a few lines. `templating.py` holds what all of them share.
"""
