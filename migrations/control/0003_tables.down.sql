DROP TABLE posduif.tables;
