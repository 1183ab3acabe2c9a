"""`make engines`: the edges' tests, and a whole job, on other tables and stores than AWS's."""
