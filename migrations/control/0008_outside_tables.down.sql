DROP TABLE posduif.outside_tables;
