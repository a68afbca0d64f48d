-- Pages of usage with room for the next versions of their rows, as upkeep makes later partitions (src/storage/partitions.ts).
-- By hand: drizzle-kit knows nothing of partitions. Instances of an older release go on as before.
DO $$
DECLARE
	partition regclass;
BEGIN
	FOR partition IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'public.usage'::regclass LOOP
		EXECUTE format('ALTER TABLE %s SET (fillfactor = 50)', partition);
	END LOOP;
END
$$;
