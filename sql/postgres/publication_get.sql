-- The operations of a publication: one row or none. $1 text: publication.
SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1
