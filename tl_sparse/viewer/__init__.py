"""The viewer: a page on which a person follows a circuit from the tokens to the logits.

    from tl_sparse import viewer

    seen = viewer.scene(model, circuit, task, corpus, report)     # all that it shows, measured
    viewer.write_viewer("quotes.html", seen)                      # one file; two: side by side
    viewer.serve("quotes.html")                                   # or open the file

1. `worth`: what each node and edge is worth, and the circuit's smaller selves;
2. `samples`: what its nodes do on text and on the task's prompts, where its heads look;
3. `scene`: all of it as plain data, with the drawing;
4. `page`: the HTML file, with `viewer.js` and `viewer.css` inside;
5. `serving`: on the loopback address.
"""

from tl_sparse.viewer.page import viewer_page, write_viewer
from tl_sparse.viewer.scene import Scene, scene
from tl_sparse.viewer.serving import serve

__all__ = ["Scene", "scene", "serve", "viewer_page", "write_viewer"]
