DROP TABLE posduif.commands;
DROP FUNCTION posduif.commands_clear();
