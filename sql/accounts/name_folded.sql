-- A name as names are compared. $1 text.
SELECT lower($1) AS name
