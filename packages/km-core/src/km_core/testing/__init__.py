"""
Conformance kit for plugin authors: contracts to subclass, fakes, a runner for the command line.

Needs the extra ``testing`` of km-core.  ``docs/guide/testing-plugins.md`` lists every promise under the
number that its test carries.
"""
