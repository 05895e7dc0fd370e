-- Gives the role of the demo's SQL box its rights on the tables of the demo.
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.lists, {schema}.list_members, {schema}.tasks TO posduif_demo
