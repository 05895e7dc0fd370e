-- Records a new epoch. $1 slot, $2 number, $3 id, $4 base, $5 system id, $6 timeline, $7 start LSN, $8 reason.
INSERT INTO posduif.epochs (slot, number, id, base, system_id, timeline, start_lsn, reason)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
