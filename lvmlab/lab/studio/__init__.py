"""Widgets for JupyterLab, and what they do: `lvmlab.lab.studio.studio.Studio` shows a
`lvmlab.lab.studio.session.Session`.
"""
