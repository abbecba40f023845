-- First what belongs to the slot: tasks whose tag, or key, is one of its tags. Then the others in order.
local mine, others, is_mine = {}, {}, {}
for _, tag in ipairs(tags) do is_mine[tag] = true end
for i, one in ipairs(candidates) do
  local list = (is_mine[one.tag] or is_mine[one.key]) and mine or others
  list[#list + 1] = i
end
if #mine > 0 then return mine end
return others
