"""Widgets for JupyterLab, and what they do: `lvmlab.widgets.studio.Studio` shows a `lvmlab.widgets.session.Session`."""
